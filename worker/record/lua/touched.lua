-- Finds, among the open tasks that were written since some time, those with something left to do:
-- waiting tasks with a deadline, and tasks that ended while they waited and whose pushes are not
-- queued.
--
-- open    ns:open  sorted set  read, as are the records of its members
-- since   score of the first member to read
-- count   most members to read
-- before  what is before and behind the id in a record's key
-- behind
-- Returns {number of members read, first score, last score, id, deadline or '', ...}. A member
-- whose record can't be read is left out.
local open = unpack(KEYS)
local since, count, before, behind = unpack(ARGV)
local members = redis.call('ZRANGE', open, since, '+inf', 'BYSCORE', 'LIMIT', 0, count,
  'WITHSCORES')
if #members == 0 then return {0, since, since} end
local found = {#members / 2, members[2], members[#members]}
for each = 1, #members, 2 do
  local record = redis.pcall('HMGET', before .. members[each] .. behind,
    'status', 'deadline_at', 'owner', 'told')
  local status, deadline_at, owner, told = unpack(record)
  if status == 'queued' then
    local deadline = tonumber(deadline_at or '')
    if deadline and deadline == deadline then
      found[#found + 1] = members[each]
      found[#found + 1] = stamp(deadline)
    end
  elseif status and not owner and not told then
    found[#found + 1] = members[each]
    found[#found + 1] = ''
  end
end
return found
