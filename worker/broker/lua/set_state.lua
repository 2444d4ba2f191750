-- Writes Celery's states of running tasks, but of none whose result has a final state.
--
-- results    celery-task-meta-<id> of each task: string, written; also published on this channel
-- expires_s  their time to live, 0 for none
-- metas      JSON of each state
-- Returns an answer for each task: 1, 0 when nothing was written, or the error.
local results = {unpack(KEYS, 1)}
local expires_s = unpack(ARGV)
local metas = {unpack(ARGV, 2)}
local function set_state(result, meta)
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
end
local answers = {}
for number, result in ipairs(results) do
  answers[number] = answer_of(set_state, result, metas[number])
end
return answers
