-- Writes Celery's state of a running task, unless its result already has a final state.
--
-- result     celery-task-meta-<id>  string  written; also published on the channel of this name
-- meta       the state's JSON
-- expires_s  its time to live, 0 for none
-- Returns 1, or 0 when nothing was written.
local result = unpack(KEYS)
local meta, expires_s = unpack(ARGV)
local held = redis.call('GET', result)
local state = held and string.match(held, '^{"status": "(%u+)"')
if state == 'SUCCESS' or state == 'FAILURE' or state == 'REVOKED' then return 0 end
if tonumber(expires_s) > 0 then
  redis.call('SET', result, meta, 'EX', expires_s)
else
  redis.call('SET', result, meta)
end
redis.call('PUBLISH', result, meta)
return 1
